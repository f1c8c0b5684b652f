"""Image classification: data through Hugging Face `datasets`, models through timm, training through Lightning."""
