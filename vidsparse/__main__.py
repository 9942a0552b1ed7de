"""`python -m vidsparse`, as torchrun starts it: `torchrun --nproc-per-node 8 -m vidsparse generate ... --ulysses 8`."""

from vidsparse.cli import main

main()
