"""What happens when the power goes, a process dies or a disk lies."""
