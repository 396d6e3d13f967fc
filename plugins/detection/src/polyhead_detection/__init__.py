"""Object detection for Polyhead: Focus-DETR and DINO."""
