"""What the machine has and allows: processor, device, memory and time, files, output."""
