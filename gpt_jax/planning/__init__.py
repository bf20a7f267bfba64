"""What a program will need and how fast it will be, on chips that need not be there."""
