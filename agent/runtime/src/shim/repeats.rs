//! Commands that are run again and again for as long as they succeed, as most probes do: whoever asked for them has better things to do
//! than to be told each time.

use std::time::{Duration, Instant};

use super::capture::LONGEST;
use super::connection::Asker;
use super::failure;
use super::proto::{Failure, FailureKind, Outcome, Ran, RepeatRequest, Repeated};
use super::server::Server;

/// One of them, until its answer.
#[derive(Debug)]
pub(super) struct Repeat {
    /// Who gets the answer, and of each run.
    pub asker: Asker,
    request: RepeatRequest,
    /// When it is run next, or was run last while it is.
    tick: Instant,
    /// When it was begun last.
    begun: Instant,
    running: bool,
    runs: u32,
    /// That of its user, once it was looked up.
    home: Option<String>,
}

impl Repeat {
    /// None of its runs is begun yet.
    pub fn new(asker: Asker, request: RepeatRequest) -> Repeat {
        let now = Instant::now();
        let tick = now + Duration::from_micros(request.wait_us).min(LONGEST);
        Repeat { asker, request, tick, begun: now, running: false, runs: 0, home: None }
    }

    /// When the next run is due.
    pub fn due(&self) -> Option<Instant> {
        (!self.running).then_some(self.tick)
    }

    /// Makes the next run due, if there is to be one. Who took longer than the period is run again at once.
    fn goes_on(&mut self, ran: &Ran) -> bool {
        let more = ran.code == Some(0) && self.runs < self.request.times;
        if more {
            let period = Duration::from_millis(self.request.period_ms).min(LONGEST);
            self.tick = (self.tick + period).max(Instant::now());
            self.running = false;
        }
        more
    }
}

impl Server {
    /// Begins the runs that are due.
    pub fn run_due(&mut self) {
        let now = Instant::now();
        while let Some(repeat) = self.repeats.iter_mut().find(|r| r.due().is_some_and(|at| at <= now)) {
            (repeat.running, repeat.begun) = (true, now);
            repeat.runs += 1;
            let (asker, request) = (repeat.asker, repeat.request.run.clone());
            let mut home = repeat.home.take();
            let begun = self.run_command(asker, request, &mut home);
            if let Some(repeat) = self.repeat(asker) {
                repeat.home = home;
            }
            if let Err(failure) = begun {
                self.end_repeat(asker, Err(failure));
            }
        }
    }

    /// What has become of a command that is run once, or again and again.
    pub fn has_run(&mut self, asker: Asker, ran: Ran) {
        let Some(repeat) = self.repeat(asker) else {
            return self.reply(asker, Outcome::Ran(ran), Vec::new());
        };
        if !repeat.goes_on(&ran) {
            self.end_repeat(asker, Ok(ran));
        }
    }

    fn repeat(&mut self, asker: Asker) -> Option<&mut Repeat> {
        self.repeats.iter_mut().find(|repeat| repeat.asker == asker)
    }

    /// Answers all of them.
    pub fn end_repeats(&mut self) {
        while let Some(asker) = self.repeats.first().map(|repeat| repeat.asker) {
            self.end_repeat(asker, Err(failure(FailureKind::Invalid, "the shim is shutting down")));
        }
    }

    fn end_repeat(&mut self, asker: Asker, result: Result<Ran, Failure>) {
        let Some(index) = self.repeats.iter().position(|repeat| repeat.asker == asker) else { return };
        let repeat = self.repeats.swap_remove(index);
        let ago_us = u64::try_from(repeat.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let repeated = Repeated { result, runs: repeat.runs, ago_us };
        self.reply(asker, Outcome::Repeated(repeated), Vec::new());
    }
}
