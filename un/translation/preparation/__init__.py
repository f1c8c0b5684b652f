"""From published archives to folders that fairseq can train on: IWSLT14 German-English and WMT14 English-German."""
