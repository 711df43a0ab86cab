"""Intervals of means and shares, and what may be concluded from them."""
