//! A process that measures cases of one build: `bench_worker` of this tree or of another commit, each with its own
//! knowledge of the maps.

use super::case::Case;
use anyhow::{Context as _, Result, ensure};
use std::{
    collections::BTreeSet,
    fmt,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// A running `bench_worker`; it ends with this value.
pub struct Worker {
    process: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts `program`, which measures the objects in `objects` by runs of `repeat` packets; `flows` are the numbers of
    /// established flows of the hit cases.
    pub fn start(program: &Path, objects: &Path, repeat: u32, flows: &[u32]) -> Result<Self> {
        let flows: Vec<String> = flows.iter().map(u32::to_string).collect();
        let mut process = Command::new(program)
            .arg(objects)
            .arg(repeat.to_string())
            .arg(flows.join(","))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let questions = process.stdin.take().context("no standard input")?;
        let answers = process.stdout.take().context("no standard output")?;
        Ok(Self {
            process,
            questions,
            answers: BufReader::new(answers),
        })
    }

    /// Loads what `cases` need; the names of those that this build has.
    pub fn prepare(&mut self, cases: &[Case]) -> Result<BTreeSet<String>> {
        for case in cases {
            self.ask(case)?;
        }
        self.ask(&"")?;
        let mut known = BTreeSet::new();
        loop {
            let name = self.answer()?;
            if name.is_empty() {
                return Ok(known);
            }
            known.insert(name);
        }
    }

    /// Runs a case once: processor time per packet, in nanoseconds.
    pub fn sample(&mut self, case: Case) -> Result<f64> {
        self.ask(&case)?;
        let answer = self.answer()?;
        answer
            .parse()
            .with_context(|| format!("{answer:?} is no number"))
    }

    fn ask(&mut self, line: &dyn fmt::Display) -> Result<()> {
        writeln!(self.questions, "{line}").context("the worker ended")?;
        Ok(self.questions.flush()?)
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line)?;
        ensure!(read != 0, "the worker ended");
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
