"""What a critic is worth, measured on held-out answers, and what goes wrong while it learns."""
