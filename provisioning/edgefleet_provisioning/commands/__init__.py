"""What each command does, one module a noun; `cli` lists them."""
