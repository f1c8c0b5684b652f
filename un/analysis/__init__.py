"""What the norms of a model see while it trains: the recorder, its files, and the figures drawn from them."""
