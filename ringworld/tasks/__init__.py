"""What is asked and how it is judged, for training and evaluation alike."""
