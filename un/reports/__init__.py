"""Results of runs and measurements, and the tables and the page made of them. Nothing here imports torch."""
