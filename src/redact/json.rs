//! JSON: objects are taken apart and put together again; everything else is copied as it was spelt.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::Unredactable;
use crate::cloud::Withholding;

/// Objects and lists inside each other.
const DEPTH: usize = 48;

/// What a repeated name is told as inside a parser's error.
const REPEATED: &str = "imds-guard: a name is repeated";

pub(super) fn redact(text: &str, withholding: &Withholding) -> Result<Vec<u8>, Unredactable> {
    let mut writer = Writer { withholding, path: Vec::new(), out: Vec::with_capacity(text.len()) };
    let document: Object<'_> = parse(text)?;
    writer.object(document, 0)?;
    Ok(writer.out)
}

fn parse<'t, T: Deserialize<'t>>(text: &'t str) -> Result<T, Unredactable> {
    serde_json::from_str(text).map_err(|error| {
        if error.to_string().starts_with(REPEATED) { Unredactable::Repeated } else { Unredactable::Malformed }
    })
}

/// The members of one object: names decoded, values as they are spelt.
struct Object<'t>(Vec<(String, &'t RawValue)>);

impl<'de: 't, 't> Deserialize<'de> for Object<'t> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<'t>(std::marker::PhantomData<&'t ()>);
        impl<'de: 't, 't> Visitor<'de> for Members<'t> {
            type Value = Object<'t>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut members, mut seen) = (Vec::new(), HashSet::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(REPEATED));
                    }
                    members.push((name, map.next_value()?));
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members(std::marker::PhantomData))
    }
}

struct Writer<'a> {
    withholding: &'a Withholding,
    /// The names from the outermost object to here, in lower case.
    path: Vec<String>,
    out: Vec<u8>,
}

impl Writer<'_> {
    fn object(&mut self, object: Object<'_>, depth: usize) -> Result<(), Unredactable> {
        self.out.push(b'{');
        let mut is_first = true;
        for (name, value) in object.0 {
            self.path.push(name.to_lowercase());
            if !self.takes(value) {
                self.separate(&mut is_first);
                serde_json::to_writer(&mut self.out, &name).map_err(|_| Unredactable::Malformed)?;
                self.out.push(b':');
                self.value(value, depth + 1)?;
            }
            self.path.pop();
        }
        self.out.push(b'}');
        Ok(())
    }

    fn list(&mut self, items: Vec<&RawValue>, depth: usize) -> Result<(), Unredactable> {
        self.out.push(b'[');
        let mut is_first = true;
        for item in items {
            if !self.takes(item) {
                self.separate(&mut is_first);
                self.value(item, depth + 1)?;
            }
        }
        self.out.push(b']');
        Ok(())
    }

    fn value(&mut self, value: &RawValue, depth: usize) -> Result<(), Unredactable> {
        if depth > DEPTH {
            return Err(Unredactable::TooDeep);
        }
        let text = value.get();
        match text.as_bytes().first() {
            Some(b'{') => self.object(parse(text)?, depth),
            Some(b'[') => self.list(parse(text)?, depth),
            Some(_) => {
                self.out.extend_from_slice(text.as_bytes());
                Ok(())
            }
            None => Err(Unredactable::Malformed),
        }
    }

    /// Whether the value at the present path goes.
    fn takes(&self, value: &RawValue) -> bool {
        if value.get().starts_with(['{', '[']) {
            self.withholding.takes(&self.path)
        } else {
            self.withholding.takes_leaf(&self.path)
        }
    }

    fn separate(&mut self, is_first: &mut bool) {
        if !std::mem::replace(is_first, false) {
            self.out.push(b',');
        }
    }
}
