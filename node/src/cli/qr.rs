//! QR codes: in half blocks for a terminal, and as PNG for paper.

use qrcode::bits::Bits;
use qrcode::render::unicode::Dense1x2;
use qrcode::types::{Color, QrError, Version};
use qrcode::{EcLevel, QrCode};

/// Light modules around a code (ISO/IEC 18004).
const QUIET: usize = 4;
/// Pixels of a module: sharp on paper, and a large code stays under 1,500 pixels a side.
const SCALE: usize = 8;

/// The text in half blocks: two modules a character, light ones drawn, as terminals are dark. Errors: it is too long.
pub fn drawn(text: &str) -> Result<String, QrError> {
    let code = narrowest(text, EcLevel::L)?;
    Ok(code
        .render::<Dense1x2>()
        .dark_color(Dense1x2::Light)
        .light_color(Dense1x2::Dark)
        .build())
}

/// The code with the fewest modules: changing the mode within a text, as the crate likes to, is not always the shortest.
fn narrowest(text: &str, level: EcLevel) -> Result<QrCode, QrError> {
    let mixed = QrCode::with_error_correction_level(text, level)?;
    let plain = (1..=40).find_map(|version| {
        let mut bits = Bits::new(Version::Normal(version));
        bits.push_byte_data(text.as_bytes()).ok()?;
        bits.push_terminator(level).ok()?;
        QrCode::with_bits(bits, level).ok()
    });
    Ok(match plain {
        Some(plain) if plain.width() < mixed.width() => plain,
        _ => mixed,
    })
}

/// Whether the terminal is wide enough; broken lines are no QR code. Says so on stderr where it is not.
pub fn fits(code: &str) -> bool {
    let needed = code.lines().next().map_or(0, |line| line.chars().count());
    match comfy_table::Table::new().width() {
        Some(columns) if usize::from(columns) < needed => {
            eprintln!("the QR code needs {needed} columns, and the terminal has {columns}");
            false
        }
        _ => true,
    }
}

/// The text as a black and white PNG, with more redundancy than on a screen where there is room for it: paper gets
/// stains. Errors: a sentence.
pub fn png(text: &str) -> Result<Vec<u8>, String> {
    let code = narrowest(text, EcLevel::M)
        .or_else(|_| narrowest(text, EcLevel::L))
        .map_err(|error| error.to_string())?;
    let width = code.width();
    let side = (width + 2 * QUIET) * SCALE;
    let colors = code.to_colors();
    let is_light = |x: usize, y: usize| {
        let module = |pixel: usize| (pixel / SCALE).checked_sub(QUIET).filter(|at| *at < width);
        match (module(x), module(y)) {
            (Some(x), Some(y)) => colors.get(y * width + x) != Some(&Color::Dark),
            _ => true,
        }
    };
    // One bit a pixel, each row in whole bytes; `SCALE` makes them so.
    let row_bytes = side.div_ceil(8);
    let mut pixels = vec![0u8; row_bytes * side];
    for (y, row) in pixels.chunks_exact_mut(row_bytes).enumerate() {
        for x in (0..side).filter(|x| is_light(*x, y)) {
            row[x / 8] |= 0x80 >> (x % 8);
        }
    }
    let side = u32::try_from(side).map_err(|error| error.to_string())?;
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, side, side);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    let written = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(&pixels)?;
        writer.finish()
    });
    written.map_err(|error| error.to_string())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_png_shows_the_modules_of_the_code() {
        let text = "x".repeat(hn_protocol::document::MAX_KEY_SHARE_BYTES);
        for text in ["hn", &text] {
            let file = png(text).unwrap();
            let decoder = png::Decoder::new(std::io::Cursor::new(file));
            let mut reader = decoder.read_info().unwrap();
            let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
            let info = reader.next_frame(&mut pixels).unwrap();
            let code = narrowest(text, EcLevel::M)
                .or_else(|_| narrowest(text, EcLevel::L))
                .unwrap();
            assert_eq!(info.width as usize, (code.width() + 2 * QUIET) * SCALE);
            let light = |x: usize, y: usize| {
                let at = y * info.line_size + x / 8;
                pixels[at] & (0x80 >> (x % 8)) != 0
            };
            for (at, color) in code.to_colors().iter().enumerate() {
                let (x, y) = (at % code.width() + QUIET, at / code.width() + QUIET);
                assert_eq!(light(x * SCALE, y * SCALE), *color == Color::Light);
                assert_eq!(light(x * SCALE + 7, y * SCALE + 7), *color == Color::Light);
            }
            assert!(light(0, 0) && light(QUIET * SCALE - 1, QUIET * SCALE - 1));
        }
    }
}
