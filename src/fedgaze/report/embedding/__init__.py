"""Layer-wise embeddings of labelled pictures, and the page about them."""
