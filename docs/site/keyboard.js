// What scrolls sideways can be scrolled by the keyboard, and what the search is called is said to who cannot see it.
document$.subscribe(() => {
  document.querySelector(".md-search").setAttribute("aria-label", "Search");
  const mark = () => {
    for (const part of document.querySelectorAll("pre > code, .md-typeset__scrollwrap, .md-typeset__table")) {
      if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
      else part.removeAttribute("tabindex");
    }
  };
  requestAnimationFrame(mark);
  addEventListener("resize", mark);
});
