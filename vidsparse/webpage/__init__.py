"""A page in one file of HTML that shows what ran, with its videos inside: `--report page.html`."""
