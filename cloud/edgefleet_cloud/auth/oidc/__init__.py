"""OpenID Connect: people and programs that a provider vouches for, beside our own tokens.

Only signatures by keys that the provider shows are believed, by algorithms of a short list. `keys`
fetches and caches them, `claims` says what a token's contents must be and whom they mean.
"""
