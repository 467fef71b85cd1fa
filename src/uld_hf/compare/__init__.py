"""Target and unlearned answers beside each other, in a browser: what is streamed, and the page that shows it."""
