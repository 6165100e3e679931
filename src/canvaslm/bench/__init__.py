"""Measurements: answers under load, in this process or of a server, and a denoise step part by part."""
