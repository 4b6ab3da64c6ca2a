//! SETTINGS (RFC 9114, 7.2.4), with those of extended CONNECT (RFC 9220), HTTP Datagrams (RFC 9297) and the
//! drafts of WebTransport.

use crate::{Code, Error, varint};

const QPACK_MAX_TABLE_CAPACITY: u64 = 0x01;
const MAX_FIELD_SECTION_SIZE: u64 = 0x06;
const QPACK_BLOCKED_STREAMS: u64 = 0x07;
const ENABLE_CONNECT_PROTOCOL: u64 = 0x08;
const H3_DATAGRAM: u64 = 0x33;
/// Of draft-ietf-masque-h3-datagram-04, which Chromium and Firefox still send and look for.
const H3_DATAGRAM_DRAFT04: u64 = 0xff_d277;
/// Enables WebTransport in draft-02: all that Firefox (152) and Chromium (156, without flags) look for.
const WT_DRAFT02: u64 = 0x2b60_3742;
/// Number of sessions in draft-07: Chromium (156) with `--enable-features=EnableWebTransportDraft07`.
const WT_MAX_SESSIONS_DRAFT07: u64 = 0xc671_706a;
/// Number of sessions in drafts 13 and 14: Safari (26.4) wants it, and the three initial limits.
const WT_MAX_SESSIONS_DRAFT13: u64 = 0x14e9_cd29;
/// Enables WebTransport since draft-15.
const WT_ENABLED: u64 = 0x2c7c_f000;
const WT_INITIAL_MAX_DATA: u64 = 0x2b61;
const WT_INITIAL_MAX_STREAMS_UNI: u64 = 0x2b64;
const WT_INITIAL_MAX_STREAMS_BIDI: u64 = 0x2b65;
/// Of HTTP/2, reserved so that nobody takes them over.
const OF_HTTP2: [u64; 4] = [0x02, 0x03, 0x04, 0x05];

/// What one side can do and takes. The default is what holds until SETTINGS come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub qpack_max_table_capacity: u64,
    pub qpack_blocked_streams: u64,
    pub max_field_section_size: Option<u64>,
    pub enable_connect_protocol: bool,
    pub h3_datagram: bool,
    pub h3_datagram_draft04: bool,
    pub wt_draft02: bool,
    pub wt_max_sessions_draft07: u64,
    pub wt_max_sessions_draft13: u64,
    pub wt_enabled: bool,
    /// Limits of each session. If both sides send one of the three that is not zero, both obey them.
    pub wt_initial_max_data: u64,
    pub wt_initial_max_streams_uni: u64,
    pub wt_initial_max_streams_bidi: u64,
}

impl Settings {
    /// A side that offers extended CONNECT, and no dynamic tables.
    pub fn new(max_field_section_size: u64) -> Settings {
        Settings {
            max_field_section_size: Some(max_field_section_size),
            enable_connect_protocol: true,
            ..Settings::default()
        }
    }

    /// Datagrams, and WebTransport in every dialect that browsers speak.
    pub fn with_webtransport(mut self, sessions: u64) -> Settings {
        self.h3_datagram = true;
        self.h3_datagram_draft04 = true;
        self.wt_draft02 = true;
        self.wt_max_sessions_draft07 = sessions;
        self.wt_max_sessions_draft13 = sessions;
        self.wt_enabled = true;
        // What a session may send is limited by QUIC's windows; of its streams all but one are refused.
        self.wt_initial_max_data = 1 << 60;
        self.wt_initial_max_streams_uni = 1 << 60;
        self.wt_initial_max_streams_bidi = 1 << 60;
        self
    }

    /// Some dialect of WebTransport.
    pub fn has_webtransport(&self) -> bool {
        self.wt_draft02
            || self.wt_enabled
            || self.wt_max_sessions_draft07 > 0
            || self.wt_max_sessions_draft13 > 0
    }

    /// Says that it uses flow control within sessions.
    pub fn has_session_limits(&self) -> bool {
        [self.wt_initial_max_data, self.wt_initial_max_streams_uni, self.wt_initial_max_streams_bidi]
            != [0, 0, 0]
    }

    pub(crate) fn read(mut payload: &[u8]) -> Result<Settings, Error> {
        const BROKEN: Error = Error::connection(Code::H3_FRAME_ERROR, "settings cut off");
        let mut settings = Settings::default();
        let mut seen = Vec::new();
        while !payload.is_empty() {
            let id = varint::read(&mut payload).ok_or(BROKEN)?;
            let value = varint::read(&mut payload).ok_or(BROKEN)?;
            if OF_HTTP2.contains(&id) {
                return Err(Error::connection(Code::H3_SETTINGS_ERROR, "setting of HTTP/2"));
            }
            if seen.contains(&id) {
                return Err(Error::connection(Code::H3_SETTINGS_ERROR, "setting twice"));
            }
            // Of the others nothing is kept, so that a frame full of them is not compared with itself.
            if settings.set(id, value)? {
                seen.push(id);
            }
        }
        Ok(settings)
    }

    /// Whether the id is known.
    fn set(&mut self, id: u64, value: u64) -> Result<bool, Error> {
        match id {
            QPACK_MAX_TABLE_CAPACITY => self.qpack_max_table_capacity = value,
            QPACK_BLOCKED_STREAMS => self.qpack_blocked_streams = value,
            MAX_FIELD_SECTION_SIZE => self.max_field_section_size = Some(value),
            ENABLE_CONNECT_PROTOCOL => self.enable_connect_protocol = switch(value)?,
            H3_DATAGRAM => self.h3_datagram = switch(value)?,
            // Drafts: as lenient as they are vague.
            H3_DATAGRAM_DRAFT04 => self.h3_datagram_draft04 = value > 0,
            WT_DRAFT02 => self.wt_draft02 = value > 0,
            WT_MAX_SESSIONS_DRAFT07 => self.wt_max_sessions_draft07 = value,
            WT_MAX_SESSIONS_DRAFT13 => self.wt_max_sessions_draft13 = value,
            WT_ENABLED => self.wt_enabled = value > 0,
            WT_INITIAL_MAX_DATA => self.wt_initial_max_data = value,
            WT_INITIAL_MAX_STREAMS_UNI => self.wt_initial_max_streams_uni = value,
            WT_INITIAL_MAX_STREAMS_BIDI => self.wt_initial_max_streams_bidi = value,
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(crate) fn payload(&self) -> Vec<u8> {
        let mut output = Vec::new();
        let mut put = |id, value| {
            varint::write(id, &mut output);
            varint::write(value, &mut output);
        };
        put(QPACK_MAX_TABLE_CAPACITY, self.qpack_max_table_capacity);
        put(QPACK_BLOCKED_STREAMS, self.qpack_blocked_streams);
        if let Some(size) = self.max_field_section_size {
            put(MAX_FIELD_SECTION_SIZE, size);
        }
        let others = [
            (ENABLE_CONNECT_PROTOCOL, u64::from(self.enable_connect_protocol)),
            (H3_DATAGRAM, u64::from(self.h3_datagram)),
            (H3_DATAGRAM_DRAFT04, u64::from(self.h3_datagram_draft04)),
            (WT_DRAFT02, u64::from(self.wt_draft02)),
            (WT_MAX_SESSIONS_DRAFT07, self.wt_max_sessions_draft07),
            (WT_MAX_SESSIONS_DRAFT13, self.wt_max_sessions_draft13),
            (WT_ENABLED, u64::from(self.wt_enabled)),
            (WT_INITIAL_MAX_DATA, self.wt_initial_max_data),
            (WT_INITIAL_MAX_STREAMS_UNI, self.wt_initial_max_streams_uni),
            (WT_INITIAL_MAX_STREAMS_BIDI, self.wt_initial_max_streams_bidi),
        ];
        // Zero is what holds without them.
        others.into_iter().filter(|(_, value)| *value > 0).for_each(|(id, value)| put(id, value));
        output
    }
}

fn switch(value: u64) -> Result<bool, Error> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::connection(Code::H3_SETTINGS_ERROR, "setting is neither 0 nor 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn come_back() {
        for settings in [
            Settings::default(),
            Settings::new(16_384),
            Settings { qpack_max_table_capacity: 4096, ..Settings::new(1) }.with_webtransport(16),
        ] {
            let payload = settings.payload();
            assert_eq!(Settings::read(&payload), Ok(settings));
            for end in 0..payload.len() {
                if let Err(error) = Settings::read(&payload[..end]) {
                    assert_eq!(error.code, Code::H3_FRAME_ERROR, "{end}");
                }
            }
        }
    }

    #[test]
    fn what_firefox_sends() {
        // As captured in private-octopus/picoquic#2157.
        let payload = [
            0x01, 0x80, 0x01, 0, 0, 0x07, 0x14, 0xab, 0x60, 0x37, 0x42, 0x01, 0x80, 0xff, 0xd2, 0x77, 0x01,
            0x33, 0x01, 0x08, 0x01,
        ];
        let settings = Settings::read(&payload).unwrap();
        assert!(settings.wt_draft02 && settings.h3_datagram && settings.enable_connect_protocol);
        assert_eq!((settings.qpack_max_table_capacity, settings.qpack_blocked_streams), (65_536, 20));
        assert!(!settings.has_session_limits());
    }

    #[test]
    fn wrong_ones() {
        for (payload, code) in [
            ([0x06, 1, 0x06, 1].as_slice(), Code::H3_SETTINGS_ERROR),
            (&[0x02, 0], Code::H3_SETTINGS_ERROR),
            (&[0x05, 0], Code::H3_SETTINGS_ERROR),
            (&[0x08, 2], Code::H3_SETTINGS_ERROR),
            (&[0x33, 2], Code::H3_SETTINGS_ERROR),
            (&[0x06], Code::H3_FRAME_ERROR),
            (&[0x06, 0x40], Code::H3_FRAME_ERROR),
        ] {
            assert_eq!(Settings::read(payload).unwrap_err().code, code, "{payload:x?}");
        }
        assert_eq!(Settings::read(&[0x21, 7, 0x21, 7]), Ok(Settings::default()));
    }
}
