"""What a .pth is: its weights read as data, its config, its name among the published files, and the protocol that follows."""
