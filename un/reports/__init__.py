"""What runs leave behind, as data: the result schema. Nothing here imports torch."""
