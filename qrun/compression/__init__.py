"""Matrix-product operators and truncated SVD of frozen weights."""
