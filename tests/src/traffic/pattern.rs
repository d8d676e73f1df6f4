//! A byte stream that both ends can compute: any byte lost, doubled, moved or changed is noticed.

/// The stream of one seed (xorshift64*, G. Marsaglia and S. Vigna).
pub(super) struct Pattern {
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Pattern {
    pub(super) fn new(seed: u64) -> Self {
        // Zero is the one state that never changes.
        Self { state: seed | 1, word: [0; 8], used: 8 }
    }

    /// Returns the next eight bytes as a number; also the lab's source of repeatable randomness.
    pub(super) fn next_word(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn next_byte(&mut self) -> u8 {
        if self.used == self.word.len() {
            self.word = self.next_word().to_le_bytes();
            self.used = 0;
        }
        let byte = self.word.get(self.used).copied().unwrap_or_default();
        self.used += 1;
        byte
    }

    /// Fills `buffer` with the next bytes of the stream.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) {
        let mut rest = buffer;
        while let Some((first, tail)) = std::mem::take(&mut rest).split_first_mut() {
            if self.used == 8 && tail.len() >= 7 {
                // Whole words at once, because gigabytes are compared this way.
                *first = 0;
                let (word, after) = tail.split_at_mut(7);
                let [head, next @ ..] = self.next_word().to_le_bytes();
                *first = head;
                word.copy_from_slice(&next);
                rest = after;
            } else {
                *first = self.next_byte();
                rest = tail;
            }
        }
    }

    /// Returns whether `bytes` are the next ones of the stream; `scratch` saves an allocation per call.
    pub(super) fn matches(&mut self, bytes: &[u8], scratch: &mut Vec<u8>) -> bool {
        scratch.resize(bytes.len(), 0);
        self.fill(scratch);
        scratch == bytes
    }

    /// Returns a number below `bound`, near enough to uniform for tests.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        (self.next_word() >> 11) % bound.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_does_not_depend_on_how_it_is_cut() {
        let mut whole = vec![0; 1000];
        Pattern::new(7).fill(&mut whole);
        let mut pattern = Pattern::new(7);
        let mut scratch = Vec::new();
        let mut rest = whole.as_slice();
        for cut in [1, 3, 8, 16, 7, 100, 9, 356, 500] {
            let (head, tail) = rest.split_at(cut);
            assert!(pattern.matches(head, &mut scratch), "cut of {cut}");
            rest = tail;
        }
        assert!(rest.is_empty());
        assert!(!pattern.matches(&[0; 16], &mut scratch), "a wrong byte goes unnoticed");
    }
}
