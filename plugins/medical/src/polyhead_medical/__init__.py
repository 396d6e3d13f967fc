"""Attention U-Nets that measure tumours and organs in scans."""
