//! Follows a chunked body byte by byte, more strictly than the HTTP library behind the gate.

use super::fault::Fault;
use super::gate::{Limits, Strictness};
use super::parse::is_token_byte;

/// How many bytes of extensions, and of trailers, one body may carry in audit mode. The HTTP library allows
/// twice as much and answers by itself beyond that.
const OVERHEAD: usize = 8 * 1024;

/// More digits overflow the size in some parsers.
const SIZE_DIGITS: u8 = 15;

/// How far an advance came.
pub(super) struct Progress {
    /// How many bytes belong to the body.
    pub taken: usize,
    /// What is wrong with the byte after them.
    pub fault: Option<Fault>,
}

/// The state of one chunked body.
#[derive(Debug, Default)]
pub(super) struct Chunked {
    place: Place,
    /// The size of the current chunk, then what is left of it.
    size: u64,
    digits: u8,
    overhead: usize,
    trailers: usize,
}

/// Where in the body the next byte is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    #[default]
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Done,
}

impl Chunked {
    /// Whether the body is complete.
    pub(super) fn is_done(&self) -> bool {
        self.place == Place::Done
    }

    /// Takes as many bytes as belong to the body.
    pub(super) fn advance(&mut self, unread: &[u8], strictness: Strictness, limits: Limits) -> Progress {
        let mut taken = 0;
        while let Some(byte) = unread.get(taken).copied() {
            match self.place {
                Place::Done => break,
                Place::Data => taken += self.data(unread.len() - taken),
                Place::Size
                | Place::Extension
                | Place::SizeLf
                | Place::DataCr
                | Place::DataLf
                | Place::TrailerStart
                | Place::TrailerName
                | Place::TrailerValue
                | Place::TrailerLf
                | Place::EndLf => match self.frame(byte, strictness, limits) {
                    Ok(place) => {
                        self.place = place;
                        taken += 1;
                    }
                    Err(fault) => return Progress { taken, fault: Some(fault) },
                },
            }
        }
        Progress { taken, fault: None }
    }

    /// Takes the chunk's data, at most what is there.
    fn data(&mut self, available: usize) -> usize {
        let taken = usize::try_from(self.size).map_or(available, |size| size.min(available));
        self.size -= u64::try_from(taken).unwrap_or(self.size);
        if self.size == 0 {
            self.place = Place::DataCr;
        }
        taken
    }

    /// Takes one byte of the framing; says where the next one is.
    fn frame(&mut self, byte: u8, strictness: Strictness, limits: Limits) -> Result<Place, Fault> {
        match (self.place, byte) {
            (Place::Size, b'\r') if self.digits > 0 => Ok(Place::SizeLf),
            (Place::Size, b';') if self.digits > 0 => {
                self.spend(Fault::ChunkExtension, strictness, Place::Extension)
            }
            (Place::Size, _) => self.digit(byte),
            (Place::Extension, b'\r') => Ok(Place::SizeLf),
            (Place::Extension, b'\t' | b' '..=b'~') => {
                self.spend(Fault::ChunkExtension, strictness, Place::Extension)
            }
            (Place::SizeLf, b'\n') => Ok(self.after_size()),
            (Place::DataCr, b'\r') => Ok(Place::DataLf),
            (Place::DataLf, b'\n') => Ok(Place::Size),
            (Place::TrailerStart, b'\r') => Ok(Place::EndLf),
            (Place::EndLf, b'\n') => Ok(Place::Done),
            (Place::TrailerStart, _) => {
                self.trailers += 1;
                if self.trailers > limits.headers {
                    return Err(Fault::ChunkOverhead);
                }
                self.trailer_name(byte, strictness)
            }
            (Place::TrailerName, b':') => self.spend(Fault::Trailers, strictness, Place::TrailerValue),
            (Place::TrailerName, _) => self.trailer_name(byte, strictness),
            (Place::TrailerValue, b'\r') => Ok(Place::TrailerLf),
            (Place::TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => {
                self.spend(Fault::Trailers, strictness, Place::TrailerValue)
            }
            (Place::TrailerLf, b'\n') => Ok(Place::TrailerStart),
            (Place::TrailerValue | Place::TrailerLf, _) => Err(Fault::TrailerInvalid),
            (
                Place::Extension
                | Place::SizeLf
                | Place::Data
                | Place::DataCr
                | Place::DataLf
                | Place::EndLf
                | Place::Done,
                _,
            ) => Err(Fault::ChunkFraming),
        }
    }

    /// One more digit of the size.
    fn digit(&mut self, byte: u8) -> Result<Place, Fault> {
        let digit = char::from(byte).to_digit(16).ok_or(Fault::ChunkSizeInvalid)?;
        if self.digits == SIZE_DIGITS {
            return Err(Fault::ChunkSizeInvalid);
        }
        self.digits += 1;
        self.size = self.size * 16 + u64::from(digit);
        Ok(Place::Size)
    }

    /// The size line is complete.
    fn after_size(&mut self) -> Place {
        self.digits = 0;
        if self.size == 0 { Place::TrailerStart } else { Place::Data }
    }

    fn trailer_name(&mut self, byte: u8, strictness: Strictness) -> Result<Place, Fault> {
        if strictness == Strictness::Audit && !is_token_byte(byte) {
            return Err(Fault::TrailerInvalid);
        }
        self.spend(Fault::Trailers, strictness, Place::TrailerName)
    }

    /// One byte that only audit lets pass, and not without bound.
    fn spend(&mut self, fault: Fault, strictness: Strictness, next: Place) -> Result<Place, Fault> {
        if strictness == Strictness::Enforce {
            return Err(fault);
        }
        self.overhead += 1;
        if self.overhead > OVERHEAD { Err(Fault::ChunkOverhead) } else { Ok(next) }
    }
}
