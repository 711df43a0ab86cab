"""What is timed, and against whom. Every benchmark prints ratios taken in one run on one machine."""
