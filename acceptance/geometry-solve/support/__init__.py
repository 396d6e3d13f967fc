"""What the claims of this folder share."""
