"""`python -m wanstore` is the `wanstore` command."""

from wanstore.cli import main

main()
