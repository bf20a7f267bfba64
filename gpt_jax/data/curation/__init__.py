"""Crawled text to a training set whose every decision can be looked up: pure stages, and runners that apply them."""
