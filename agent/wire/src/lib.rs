//! Bytes on the wire: the sluice/1 framing and what a first flight tells.
