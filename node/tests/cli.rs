//! Sessions of the command line as pages: prose, `$ hn …`, the expected output. A page starts in a copy of its `.in`
//! folder, with `home` below it as the home and no identity, and its commands follow one another there.

#[test]
fn every_session_of_the_pages_is_true() {
    trycmd::TestCases::new()
        .env("HN_HOME", "home")
        // Help is as wide as its terminal; here it is always the same.
        .env("COLUMNS", "100")
        .env("NO_COLOR", "1")
        .case("tests/cli/*.md");
}
