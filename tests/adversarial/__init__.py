"""What an attacker may try: rows 1 to 60 of the threat tests, each by its number."""
