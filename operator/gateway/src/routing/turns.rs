//! Which requests go to a version that is tried.

/// Takes turns by weight: of any hundred requests in a row, as many as the weight says, and spread evenly.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Turns {
    /// Hundredths of a request that it is owed.
    owed: u32,
}

impl Turns {
    /// Whether the next request is one of its. `weight`: percent, 100 at most.
    pub fn is_next(&mut self, weight: u32) -> bool {
        self.owed = self.owed.saturating_add(weight.min(100));
        let next = self.owed >= 100;
        if next {
            self.owed -= 100;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_any_hundred_in_a_row_just_its_part() {
        for weight in 0..=100 {
            let mut turns = Turns::default();
            let all: Vec<bool> = (0..1_000).map(|_| turns.is_next(weight)).collect();
            for hundred in all.windows(100) {
                assert_eq!(hundred.iter().filter(|&&next| next).count(), weight as usize);
            }
        }
        let mut turns = Turns::default();
        let tenth: Vec<usize> = (0..40).filter(|_| turns.is_next(10)).collect();
        assert_eq!(tenth, [9, 19, 29, 39]);
    }
}
