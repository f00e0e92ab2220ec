"""Runtimes, preprocessing and parity, for boxes without torch (this package never imports it)."""
