"""Compare models, layers and methods on the same pictures: figures, and the page with them."""
