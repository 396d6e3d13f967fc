"""What the claims of gaze-scanpath share."""
