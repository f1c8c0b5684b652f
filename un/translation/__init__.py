"""Translation: parallel text, fairseq's Transformer, beam search and BLEU."""
