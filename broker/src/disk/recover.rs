//! What a start makes of the segments: everything up to the last whole frame. What is broken after
//! it was never promised, and is cut off; what is broken before it is damage, and never passed over.

use super::files::Files;
use super::frame;
use super::image::{Hole, Image};
use super::ledger::Ledger;
use super::record::Record;
use std::collections::VecDeque;
use std::io;

#[derive(Debug, Default)]
pub struct Recovered {
    pub image: Image,
    pub ledger: Ledger,
    /// Numbers and bytes of those that are kept, oldest first.
    pub segments: VecDeque<(u64, u64)>,
    pub next_segment: u64,
    /// Of the next frame.
    pub next_frame: u64,
    pub cut: Option<Cut>,
}

/// What was cut off: a write under way when the process or the machine stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    pub file: String,
    pub at: u64,
    pub bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error("reading {file}: {error}")]
    Io { file: String, error: io::Error },
    #[error("{file} is damaged at byte {at}, and what was there had been promised to be kept")]
    Broken { file: String, at: u64 },
    #[error("{file} is missing")]
    Missing { file: String },
    #[error("{file} holds something that this version does not know at byte {at}")]
    Unknown { file: String, at: u64 },
    #[error("entries of shard {} are missing after {}", .0.shard, .0.after)]
    Hole(Hole),
}

pub fn name(segment: u64) -> String {
    format!("{segment:016x}.log")
}

fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log").filter(|d| d.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// A segment as seen from outside: where it begins, and where its whole frames end.
struct Outline {
    number: u64,
    length: u64,
    first: Option<u64>,
    oldest: u64,
    whole: usize,
}

pub fn recover(files: &dyn Files) -> Result<Recovered, Damage> {
    let outlines = outlines(files)?;
    let mut found = Recovered {
        next_segment: outlines.last().map_or(1, |o| o.number + 1),
        next_frame: 1,
        ..Recovered::default()
    };
    let oldest = outlines.iter().map(|o| o.oldest).max().unwrap_or(0);
    let (old, kept): (Vec<_>, Vec<_>) = outlines.into_iter().partition(|o| o.number < oldest);
    if oldest > 0 && kept.first().is_none_or(|o| o.number != oldest) {
        return Err(Damage::Missing { file: name(oldest) });
    }
    let mut first = true;
    for (at, outline) in kept.iter().enumerate() {
        let next = kept[at + 1..].iter().find_map(|o| o.first);
        if first && let Some(number) = outline.first {
            (found.next_frame, first) = (number, false);
        }
        found.segment(files, outline, next)?;
    }
    for outline in old {
        // Left over from a removal that was not finished.
        let file = name(outline.number);
        files.remove(&file).map_err(|error| Damage::Io { file, error })?;
    }
    let sync = files.sync_names();
    sync.map_err(|error| Damage::Io { file: "the directory".into(), error })?;
    Ok(found)
}

fn read(files: &dyn Files, file: &str) -> Result<Vec<u8>, Damage> {
    files.read(file).map_err(|error| Damage::Io { file: file.into(), error })
}

fn outlines(files: &dyn Files) -> Result<Vec<Outline>, Damage> {
    let names = files.list().map_err(|error| Damage::Io { file: "the directory".into(), error })?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|n| number(n)).collect();
    numbers.sort_unstable();
    let mut outlines = Vec::new();
    for number in numbers {
        let bytes = read(files, &name(number))?;
        let (frames, whole) = frame::read_all(&bytes);
        outlines.push(Outline {
            number,
            length: bytes.len() as u64,
            first: frames.first().map(|f| f.head.number),
            oldest: frames.iter().map(|f| f.head.oldest).max().unwrap_or(0),
            whole,
        });
    }
    Ok(outlines)
}

impl Recovered {
    /// `next` is the first frame of the segments after this one, if any has one.
    fn segment(&mut self, files: &dyn Files, outline: &Outline, next: Option<u64>) -> Result<(), Damage> {
        let file = name(outline.number);
        let bytes = read(files, &file)?;
        let broken = |at: usize| Damage::Broken { file: file.clone(), at: at as u64 };
        let mut at = 0;
        for frame in frame::read_all(&bytes).0 {
            // A segment that was given up may end in frames that the next one repeats.
            if next.is_some_and(|next| frame.head.number >= next) {
                break;
            }
            if frame.head.number != self.next_frame {
                return Err(broken(at));
            }
            let unknown = || Damage::Unknown { file: file.clone(), at: at as u64 };
            self.frame(outline.number, frame.records).ok_or_else(unknown)?;
            at += frame::HEADER + frame.records.len();
            self.next_frame += 1;
        }
        match next {
            Some(next) if next != self.next_frame => return Err(broken(at)),
            Some(_) => {}
            None => {
                let rest = &bytes[outline.whole..];
                if frame::search(rest).any(|f| f.head.synced >= self.next_frame) {
                    return Err(broken(outline.whole));
                }
                self.cut(files, outline)?;
            }
        }
        if outline.first.is_some() {
            let kept = if next.is_some() { outline.length } else { outline.whole as u64 };
            self.segments.push_back((outline.number, kept));
        }
        Ok(())
    }

    fn cut(&mut self, files: &dyn Files, outline: &Outline) -> Result<(), Damage> {
        let (file, whole) = (name(outline.number), outline.whole as u64);
        let done = match outline.first {
            None => files.remove(&file),
            // Also if nothing is: what the process before left to the system is to be on disk now.
            Some(_) => files.cut(&file, whole),
        };
        done.map_err(|error| Damage::Io { file: file.clone(), error })?;
        let bytes = outline.length - whole;
        if bytes > 0 {
            self.cut = Some(Cut { file, at: whole, bytes });
        }
        Ok(())
    }

    fn frame(&mut self, segment: u64, mut records: &[u8]) -> Option<()> {
        while !records.is_empty() {
            let record = Record::get(&mut records)?;
            self.ledger.note(segment, &record);
            self.image.apply(record);
        }
        Some(())
    }
}
