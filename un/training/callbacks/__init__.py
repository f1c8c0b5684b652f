"""What happens while a run trains, one file each."""
