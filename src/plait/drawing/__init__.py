"""Figures as SVG without a browser: lines with intervals, heat maps, and the colours and symbols of methods."""
