"""What runs on the other side: the zygote, the jail it builds and the jobs in it. Standard library only."""
