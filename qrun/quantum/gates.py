"""The gates of circuits: a processor's basis, and ry, which is two sx between three rz."""

BASIS = ("rz", "sx", "x", "cz", "ry")
RZ, SX, X, CZ, RY = range(5)
