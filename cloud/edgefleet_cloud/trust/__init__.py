"""The online side of the TUF repository, and the director's signature."""
