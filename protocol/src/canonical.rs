//! JSON as documents use it: parsed strictly, written canonically (RFC 8785, design 3).
//!
//! The parser refuses what two readers could understand differently: duplicate keys, numbers that a double
//! cannot hold, invalid UTF-8, and nesting that would exhaust a stack. The writer is RFC 8785 by a library.

use std::cell::Cell;
use std::fmt;
use std::ops::Range;

use serde::Serialize;
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The deepest nesting that is read: an object within an object is depth 2.
pub const MAX_DEPTH: usize = 32;
/// The largest integer that every JSON reader understands alike: 2^53.
pub const MAX_INTEGER: u64 = 1 << 53;

/// Why bytes are not JSON that we read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not UTF-8, from this byte on.
    #[error("invalid UTF-8 at byte {0}")]
    Utf8(usize),
    /// Not JSON (`NaN` is not).
    #[error("not JSON: {0}")]
    Syntax(String),
    /// One object has this key twice.
    #[error("duplicate key {0:?}")]
    DuplicateKey(String),
    /// An integer beyond 2^53, or a number that no double holds.
    #[error("a number is not finite or an integer is above 2^53")]
    Number,
    /// Nested deeper than its type allows: [`MAX_DEPTH`], unless it carries other documents.
    #[error("nested too deep")]
    Depth,
}

impl JsonError {
    /// A stable code for logs, peer states and problem+json.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Utf8(_) => "invalid_utf8",
            Self::Syntax(_) => "invalid_json",
            Self::DuplicateKey(_) => "duplicate_key",
            Self::Number => "number_out_of_range",
            Self::Depth => "nested_too_deep",
        }
    }
}

/// Parses `bytes` strictly into a value. Errors: see [`JsonError`].
pub fn parse(bytes: &[u8]) -> Result<Value, JsonError> {
    parse_within(bytes, MAX_DEPTH)
}

/// [`parse`], nested at most `depth` deep, which is at most 64.
pub fn parse_within(bytes: &[u8], depth: usize) -> Result<Value, JsonError> {
    let text = std::str::from_utf8(bytes).map_err(|e| JsonError::Utf8(e.valid_up_to()))?;
    let fault = Cell::new(None);
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Strict {
        left: depth,
        fault: &fault,
    }
    .deserialize(&mut reader)
    .and_then(|value| {
        reader.end()?;
        Ok(value)
    });
    value.map_err(|e| match fault.take() {
        Some(fault) => fault,
        // A literal such as 1e999 never reaches the visitor.
        None if e.to_string().starts_with("number out of range") => JsonError::Number,
        None if e.to_string().starts_with("recursion limit") => JsonError::Depth,
        None => JsonError::Syntax(e.to_string()),
    })
}

/// Parses `bytes` strictly into `T`. Errors: [`JsonError::Syntax`] also for a value of another shape.
pub fn from_slice<T: de::DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    serde_json::from_value(parse(bytes)?).map_err(|e| JsonError::Syntax(e.to_string()))
}

/// The RFC 8785 bytes of `value`. Errors: a map with keys that are not strings.
pub fn to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, JsonError> {
    serde_json_canonicalizer::to_vec(value).map_err(|e| JsonError::Syntax(e.to_string()))
}

struct Strict<'a> {
    /// How much deeper it may go.
    left: usize,
    fault: &'a Cell<Option<JsonError>>,
}

impl Strict<'_> {
    fn refuse<E: de::Error>(&self, fault: JsonError) -> E {
        let error = E::custom(&fault);
        self.fault.set(Some(fault));
        error
    }

    fn deeper<E: de::Error>(&self) -> Result<Strict<'_>, E> {
        let Some(left) = self.left.checked_sub(1) else {
            return Err(self.refuse(JsonError::Depth));
        };
        Ok(Strict {
            left,
            fault: self.fault,
        })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        if value > MAX_INTEGER {
            return Err(self.refuse(JsonError::Number));
        }
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        if value.unsigned_abs() > MAX_INTEGER {
            return Err(self.refuse(JsonError::Number));
        }
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        // 9007199254740994.0 and 1e20 are integers above 2^53 in another spelling.
        if value.fract() == 0.0 && value.abs() > MAX_INTEGER as f64 {
            return Err(self.refuse(JsonError::Number));
        }
        match Number::from_f64(value) {
            Some(number) => Ok(Value::Number(number)),
            None => Err(self.refuse(JsonError::Number)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(self.deeper()?)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(self.refuse(JsonError::DuplicateKey(key)));
            }
            let value = members.next_value_seed(self.deeper()?)?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// An object whose members are in canonical form, so that the object can be written without some of them,
/// and the elements of an array hashed one by one, without canonicalising anything twice.
pub struct CanonicalObject {
    members: Vec<Member>,
}

struct Member {
    /// For the order of RFC 8785: by UTF-16 code units.
    order: Vec<u16>,
    key: String,
    value: Vec<u8>,
    /// Where each element stands in `value`, when it is an array.
    elements: Vec<Range<usize>>,
}

impl CanonicalObject {
    /// Canonicalises every member of `object`.
    pub fn new(object: &Map<String, Value>) -> Result<Self, JsonError> {
        let mut members = Vec::with_capacity(object.len());
        for (key, value) in object {
            let mut elements = Vec::new();
            let value = match value {
                Value::Array(items) => {
                    let mut bytes = vec![b'['];
                    for item in items {
                        if bytes.len() > 1 {
                            bytes.push(b',');
                        }
                        let start = bytes.len();
                        write(item, &mut bytes)?;
                        elements.push(start..bytes.len());
                    }
                    bytes.push(b']');
                    bytes
                }
                other => to_vec(other)?,
            };
            members.push(Member {
                order: key.encode_utf16().collect(),
                key: key.clone(),
                value,
                elements,
            });
        }
        members.sort_by(|a, b| a.order.cmp(&b.order));
        Ok(Self { members })
    }

    /// The RFC 8785 bytes of the object without the members named in `omit`.
    pub fn without(&self, omit: &[&str]) -> Result<Vec<u8>, JsonError> {
        let size = self
            .members
            .iter()
            .map(|m| m.key.len() + m.value.len() + 4)
            .sum::<usize>();
        let mut bytes = Vec::with_capacity(size + 2);
        bytes.push(b'{');
        for member in self
            .members
            .iter()
            .filter(|m| !omit.contains(&m.key.as_str()))
        {
            if bytes.len() > 1 {
                bytes.push(b',');
            }
            write(&Value::String(member.key.clone()), &mut bytes)?;
            bytes.push(b':');
            bytes.extend_from_slice(&member.value);
        }
        bytes.push(b'}');
        Ok(bytes)
    }

    /// The canonical bytes of each element of the array member `key`; nothing when there is no such array.
    pub fn elements(&self, key: &str) -> impl Iterator<Item = &[u8]> {
        self.members
            .iter()
            .filter(move |m| m.key == key)
            .flat_map(|m| {
                m.elements
                    .iter()
                    .filter_map(|range| m.value.get(range.clone()))
            })
    }
}

fn write(value: &Value, bytes: &mut Vec<u8>) -> Result<(), JsonError> {
    serde_json_canonicalizer::to_writer(value, bytes).map_err(|e| JsonError::Syntax(e.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_two_readers_could_read_differently() {
        let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
        for (text, code) in [
            (r#"{"a":1,"a":1}"#, "duplicate_key"),
            (r#"{"b":{"a":1,"a":2}}"#, "duplicate_key"),
            ("9007199254740993", "number_out_of_range"),
            ("-9007199254740993", "number_out_of_range"),
            ("9007199254740994.0", "number_out_of_range"),
            ("1e20", "number_out_of_range"),
            ("1e999", "number_out_of_range"),
            ("NaN", "invalid_json"),
            ("Infinity", "invalid_json"),
            ("{} x", "invalid_json"),
            (r#""\ud800""#, "invalid_json"),
            (deep.as_str(), "nested_too_deep"),
        ] {
            assert_eq!(
                parse(text.as_bytes()).unwrap_err().code(),
                code,
                "{text:.40}"
            );
        }
        assert_eq!(parse(b"\"\xff\"").unwrap_err(), JsonError::Utf8(1));
    }

    #[test]
    fn reads_to_the_limits() {
        assert_eq!(
            parse(b"9007199254740992").unwrap(),
            Value::from(MAX_INTEGER)
        );
        let deep = format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
        assert!(parse(deep.as_bytes()).is_ok());
        assert!(parse(format!("[{deep}]").as_bytes()).is_err());
    }

    #[test]
    fn sorts_keys_by_utf16_and_writes_numbers_as_ecmascript_does() {
        let value = parse("{\"\u{fb33}\":1.50,\"\u{1f600}\":1e3,\"a\":[0.000001,1e-7]}".as_bytes())
            .unwrap();
        let expected = "{\"a\":[0.000001,1e-7],\"\u{1f600}\":1000,\"\u{fb33}\":1.5}";
        assert_eq!(to_vec(&value).unwrap(), expected.as_bytes());
        let object = CanonicalObject::new(value.as_object().unwrap()).unwrap();
        assert_eq!(object.without(&[]).unwrap(), expected.as_bytes());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0u64..=MAX_INTEGER).prop_map(Value::from),
            any::<f64>().prop_filter_map("finite and exact", |f| {
                (f.fract() != 0.0)
                    .then(|| Number::from_f64(f).map(Value::Number))
                    .flatten()
            }),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(".{0,6}", inner, 0..6)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn canonical_bytes_are_a_fixed_point(value in any_json()) {
            let bytes = to_vec(&value).unwrap();
            let again = parse(&bytes).unwrap();
            prop_assert_eq!(to_vec(&again).unwrap(), bytes);
        }

        #[test]
        fn an_object_is_composed_as_the_library_writes_it(
            members in prop::collection::btree_map(".{0,6}", any_json(), 0..6)
        ) {
            let map: Map<String, Value> = members.into_iter().collect();
            let composed = CanonicalObject::new(&map).unwrap().without(&[]).unwrap();
            prop_assert_eq!(composed, to_vec(&Value::Object(map)).unwrap());
        }

        #[test]
        fn parsing_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
