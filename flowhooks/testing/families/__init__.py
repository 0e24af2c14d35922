"""One file a family: a function that builds the smallest pipeline of the real classes that still runs."""
