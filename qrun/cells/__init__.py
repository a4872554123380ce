"""The engine of studies: cells that need cells, their keys, who computes them, and the table they leave."""
