//! That no two grant at once: over any loss of questions and answers, pauses, deaths, and clocks that run apart by as much as is allowed.

use proptest::prelude::*;

use super::*;

const CONFIG: Config = Config { term_ms: 10_000, margin_ms: 1_000, look_ms: 1_000 };

fn seat(holder: &str, beat: i64) -> Seat {
    Seat { holder: holder.to_owned(), address: format!("http://{holder}"), beat }
}

/// Reads the same again and again, once a look, from the first time on until before the second.
fn look(election: &mut Election, seat: &Seat, from_ms: u64, to_ms: u64) {
    for now_ms in (from_ms..to_ms).step_by(1_000) {
        assert_eq!(election.read(seat.clone(), now_ms), None, "{now_ms}");
    }
}

#[test]
fn a_seat_is_taken_when_nothing_was_renewed_for_a_term_and_more() {
    let mut election = Election::new(CONFIG, "b".to_owned());
    assert_eq!(election.step(0), Step::Read);
    look(&mut election, &seat("a", 1), 500, 11_000);
    assert_eq!(election.other(), Some("http://a"));
    look(&mut election, &seat("a", 2), 11_400, 22_400);
    assert_eq!(election.read(seat("a", 2), 22_400), Some(seat("a", 2)));
    election.taken(false, 22_400);
    assert!(!election.holds(22_400), "somebody else was faster");
    assert_eq!(election.read(seat("c", 3), 22_500), None);
    // One that is given back is free.
    assert_eq!(election.read(Seat { holder: String::new(), ..seat("c", 4) }, 22_600).unwrap().beat, 4);
    election.taken(true, 22_600);
    assert!(election.holds(32_599) && !election.holds(32_600));
}

/// A database that was put back to before somebody took the seat says that nobody has renewed it, or that it is free.
#[test]
fn a_database_that_lost_writes_is_not_believed_for_a_term() {
    // While the database was away, somebody may have taken the seat.
    let mut election = Election::new(CONFIG, "b".to_owned());
    look(&mut election, &seat("a", 1), 0, 9_000);
    look(&mut election, &seat("a", 1), 60_000, 71_000);
    assert_eq!(election.read(seat("a", 1), 71_000), Some(seat("a", 1)));
    // One look that fails is none of that.
    let mut election = Election::new(CONFIG, "b".to_owned());
    look(&mut election, &seat("a", 1), 0, 5_000);
    look(&mut election, &seat("a", 1), 8_100, 11_000);
    assert!(election.read(seat("a", 1), 11_100).is_some());
    // It says that nobody has it: so it did before, and somebody took it.
    let empty = Seat { holder: String::new(), ..seat("", 2) };
    let mut election = Election::new(CONFIG, "b".to_owned());
    assert!(election.read(empty.clone(), 0).is_some(), "it is free");
    election.taken(false, 0);
    look(&mut election, &empty, 60_000, 71_000);
    assert!(election.read(empty.clone(), 71_000).is_some());
    // Somebody had, and has not been seen since.
    let mut election = Election::new(CONFIG, "b".to_owned());
    assert_eq!(election.read(seat("c", 3), 0), None);
    look(&mut election, &empty, 1_000, 12_000);
    assert_eq!(election.read(empty.clone(), 12_000), Some(empty));
}

#[test]
fn a_term_is_counted_from_when_it_was_asked_for_and_not_taken_up_again() {
    let mut election = Election::new(CONFIG, "a".to_owned());
    election.taken(true, 0);
    assert_eq!(election.step(1_000), Step::Renew);
    election.renewed(true, 1_000);
    assert!(election.holds(10_999) && !election.holds(11_000));
    // A late answer does not bring back what is over.
    assert_eq!(election.step(11_000), Step::Read);
    election.renewed(true, 10_500);
    assert!(!election.holds(11_000));
    // Nor does finding one's own name.
    assert_eq!(election.read(seat("a", 2), 11_000), None);
    assert_eq!(election.other(), None);
    election.taken(true, 22_000);
    election.renewed(false, 23_000);
    assert!(!election.holds(23_000));
}

/// What becomes of one question of a service and its answer.
#[derive(Clone, Copy, Debug)]
struct Trip {
    /// Milliseconds of real time since the service heard, or missed, the answer before.
    after_ms: u64,
    /// Until the database has it,
    there_ms: u64,
    /// and until the answer is back.
    back_ms: u64,
    lost: bool,
    /// The answer, and not the question.
    unheard: bool,
    /// The service starts anew before it asks.
    dies: bool,
}

fn trips() -> impl Strategy<Value = Vec<Trip>> {
    let delay = || prop_oneof![8 => 0_u64..400, 1 => 0_u64..14_000];
    let trip = (0_u64..2_000, delay(), delay(), 0_u8..12, 0_u8..12, 0_u8..30);
    let trip = trip.prop_map(|(after_ms, there_ms, back_ms, lost, unheard, dies)| Trip {
        after_ms,
        there_ms,
        back_ms,
        lost: lost == 0,
        unheard: unheard == 0,
        dies: dies == 0,
    });
    proptest::collection::vec(trip, 1..60)
}

#[derive(Clone, Debug)]
enum Question {
    Renew,
    Read,
    Take(Seat),
}

#[derive(Clone, Debug)]
enum Event {
    Ask,
    AtDatabase(Question, Trip, u64),
    /// What was asked, whether it was so, and what was read.
    Heard(Question, bool, Seat, u64),
    Missed,
}

struct World {
    seat: Seat,
    services: Vec<Election>,
    trips: Vec<Vec<Trip>>,
    /// How many ticks of each clock are in 100 real milliseconds.
    rates: [u64; 3],
    events: std::collections::BTreeMap<(u64, u64), (usize, Event)>,
    number: u64,
}

impl World {
    fn clock(&self, who: usize, real_ms: u64) -> u64 {
        real_ms * self.rates[who] / 100 + 7_000 * u64::try_from(who).unwrap()
    }

    fn plan(&mut self, at_ms: u64, who: usize, event: Event) {
        self.number += 1;
        self.events.insert((at_ms, self.number), (who, event));
    }

    fn next(&mut self, who: usize, now_ms: u64) {
        if let Some(trip) = self.trips[who].last() {
            self.plan(now_ms + trip.after_ms, who, Event::Ask);
        }
    }

    fn send(&mut self, who: usize, question: Question, trip: Trip, now_ms: u64) {
        let asked_ms = self.clock(who, now_ms);
        if trip.lost {
            return self.plan(now_ms + trip.there_ms + trip.back_ms, who, Event::Missed);
        }
        self.plan(now_ms + trip.there_ms, who, Event::AtDatabase(question, trip, asked_ms));
    }

    fn happen(&mut self, who: usize, event: Event, now_ms: u64) {
        match event {
            Event::Ask => {
                let Some(trip) = self.trips[who].pop() else { return };
                if trip.dies {
                    self.services[who] = Election::new(CONFIG, format!("{who}-{now_ms}"));
                }
                let clock_ms = self.clock(who, now_ms);
                let question = match self.services[who].step(clock_ms) {
                    Step::Renew => Question::Renew,
                    Step::Read => Question::Read,
                };
                self.send(who, question, trip, now_ms);
            }
            Event::AtDatabase(question, trip, asked_ms) => {
                let me = self.services[who].me().to_owned();
                let is_so = match &question {
                    Question::Renew => self.seat.holder == me,
                    Question::Read => true,
                    Question::Take(seat) => self.seat == *seat,
                };
                match &question {
                    Question::Renew if is_so => self.seat.beat += 1,
                    Question::Take(seat) if is_so => {
                        self.seat = Seat { holder: me, address: String::new(), beat: seat.beat + 1 };
                    }
                    _ => {}
                }
                let heard = Event::Heard(question, is_so, self.seat.clone(), asked_ms);
                self.plan(now_ms + trip.back_ms, who, if trip.unheard { Event::Missed } else { heard });
            }
            Event::Heard(Question::Renew, is_ours, _, asked_ms) => {
                self.services[who].renewed(is_ours, asked_ms);
                self.next(who, now_ms);
            }
            Event::Heard(Question::Take(_), is_ours, _, asked_ms) => {
                self.services[who].taken(is_ours, asked_ms);
                self.next(who, now_ms);
            }
            Event::Heard(Question::Read, _, seat, _) => {
                let clock_ms = self.clock(who, now_ms);
                match (self.services[who].read(seat, clock_ms), self.trips[who].pop()) {
                    (Some(wanted), Some(trip)) => self.send(who, Question::Take(wanted), trip, now_ms),
                    _ => self.next(who, now_ms),
                }
            }
            Event::Missed => self.next(who, now_ms),
        }
    }

    fn granting(&self, now_ms: u64) -> usize {
        (0..3).filter(|who| self.services[*who].holds(self.clock(*who, now_ms))).count()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_two_grant_at_once(trips in [trips(), trips(), trips()], rates in [96_u64..105, 96_u64..105, 96_u64..105]) {
        let services = (0..3).map(|who| Election::new(CONFIG, format!("{who}"))).collect();
        let (seat, events) = (Seat::default(), std::collections::BTreeMap::new());
        let mut world = World { seat, services, trips: trips.to_vec(), rates, events, number: 0 };
        (0..3).for_each(|who| world.next(who, 0));
        while let Some(((now_ms, _), (who, event))) = world.events.pop_first() {
            world.happen(who, event, now_ms);
            let granting = world.granting(now_ms);
            prop_assert!(granting <= 1, "{granting} grant at {now_ms}");
        }
    }
}
