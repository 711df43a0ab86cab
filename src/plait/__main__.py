"""``python -m plait``, which ``torchrun -m plait`` and ``accelerate launch -m plait`` start in every process."""

from plait.cli.app import main

if __name__ == "__main__":
    main()
