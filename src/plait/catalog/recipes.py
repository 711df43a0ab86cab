"""Conversions of a pretrained transformer into a hybrid."""

from plait.catalog.method import Method

RECIPES = [
    Method("halo", "recipe", "plait.conversion.halo:Halo", "HALO", "2601.22156"),
    Method("lizard", "recipe", "plait.conversion.lizard:Lizard", "Lizard", "2507.09025"),
    Method(
        "sliding_window",
        "recipe",
        "plait.conversion.sliding_window:SlidingWindow",
        "Sliding window attention",
        "2512.10411",
    ),
]
