//! How many replicas the Deployments of an endpoint have while one version takes the place of another. Pure.

/// Replicas of one version on the named reservation.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Replicas {
    /// That its Deployment asks for.
    pub laid_out: i32,
    /// Of these, those that answer.
    pub ready: i32,
}

/// How many replicas the version before and the new one are to have, where `wanted` are wanted and devices are held for `held`.
///
/// With a device to spare none of the old goes before a new one answers in its place. Without one, one at a time goes first. A new version that does
/// not come to answer takes no more than one.
pub fn shift(wanted: i32, held: i32, old: Replicas, new: Replicas) -> (i32, i32) {
    let wanted = wanted.min(held).max(0);
    if old.laid_out <= 0 {
        return (0, wanted);
    }
    // What may be missing at a time: one, where there is no device for one more.
    let missing = i32::from(held <= wanted);
    let keep = (wanted - missing - new.ready.min(wanted)).clamp(0, old.laid_out);
    // Devices of those that go are free only when they are gone: until then they are counted.
    let room = (held - keep).max(0);
    (keep, wanted.min(room))
}

/// How many of `wanted` replicas a canary has by its weight in percent: at least one, and never all; none where there is only one.
pub fn canary_share(wanted: i32, weight: i32) -> i32 {
    if wanted < 2 {
        return 0;
    }
    let share = (i64::from(wanted) * i64::from(weight) + 50).div_euclid(100);
    i32::try_from(share).unwrap_or(wanted).clamp(1, wanted - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replicas(laid_out: i32, ready: i32) -> Replicas {
        Replicas { laid_out, ready }
    }

    #[test]
    fn without_an_old_version_all_that_is_held_is_used() {
        assert_eq!(shift(3, 8, replicas(0, 0), replicas(0, 0)), (0, 3));
        assert_eq!(shift(9, 8, replicas(0, 0), replicas(8, 8)), (0, 8));
        assert_eq!(shift(0, 8, replicas(0, 0), replicas(2, 2)), (0, 0));
    }

    #[test]
    fn a_canary_has_its_part_and_never_all() {
        let shares = |weight| [0, 1, 2, 3, 10, 1000].map(|wanted| canary_share(wanted, weight));
        assert_eq!(shares(1), [0, 0, 1, 1, 1, 10]);
        assert_eq!(shares(10), [0, 0, 1, 1, 1, 100]);
        assert_eq!(shares(50), [0, 0, 1, 2, 5, 500]);
        assert_eq!(shares(99), [0, 0, 1, 2, 9, 990]);
    }

    #[test]
    fn to_none_both_go() {
        assert_eq!(shift(0, 4, replicas(2, 2), replicas(1, 0)), (0, 0));
    }

    /// Runs a change to its end, where pods come up and go as they are laid out; gives the fewest that answered, and the most devices that were in use.
    fn run(wanted: i32, held: i32, comes_up: bool) -> (i32, i32, (i32, i32)) {
        let (mut old, mut new) = (replicas(wanted, wanted), replicas(0, 0));
        let (mut fewest, mut most) = (wanted, wanted);
        for _ in 0..50 {
            let (keep, lay) = shift(wanted, held, old, new);
            old = replicas(keep, keep.min(old.ready));
            // One that is laid out comes up where a device is free.
            new.laid_out = lay;
            new.ready = new.ready.min(lay);
            fewest = fewest.min(old.ready + new.ready);
            most = most.max(old.laid_out + new.laid_out);
            if comes_up && new.ready < lay {
                new.ready += 1;
            }
        }
        (fewest, most, (old.laid_out, new.ready))
    }

    #[test]
    fn a_change_comes_to_its_end_without_more_devices_than_are_held_nor_fewer_replicas_than_may_be() {
        for wanted in 1..=6 {
            for held in wanted..=wanted + 6 {
                let (fewest, most, end) = run(wanted, held, true);
                assert_eq!(end, (0, wanted), "{wanted} wanted, {held} held");
                assert!(most <= held, "{most} devices of {held}");
                let least = if held > wanted { wanted } else { wanted - 1 };
                assert!(fewest >= least, "{fewest} of {wanted} answered with {held} held");
            }
        }
    }

    #[test]
    fn a_version_that_does_not_come_up_takes_one_at_most() {
        for wanted in 1..=6 {
            for held in wanted..=wanted + 6 {
                let (fewest, _, (old, new)) = run(wanted, held, false);
                assert_eq!((old, new), (if held > wanted { wanted } else { wanted - 1 }, 0));
                assert_eq!(fewest, old);
            }
        }
    }
}
